"""How fast the methods are: against the floor that the network sets on this machine, and against other libraries."""
