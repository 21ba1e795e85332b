"""`twintrain bench`: both stacks and the peers that are installed, each in a process of its own, in turns."""
