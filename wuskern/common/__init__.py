"""What any room may use: shapes, checks of arguments and of saved states, values that blocks set, processes."""
