"""What `hksd doctor` checks, one check a function: this machine, and the nodes of a cluster."""
