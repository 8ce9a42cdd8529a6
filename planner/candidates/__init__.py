"""Every way to run a replica, as the columns of the program."""
