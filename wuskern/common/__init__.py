"""What any part of the package may use: shapes, checks of arguments and of saved states, values that blocks set, processes."""
