"""Where the gradient of a weight goes: into dense memory that is used again, past autograd from compiled code, to observers."""
