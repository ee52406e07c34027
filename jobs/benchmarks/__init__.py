"""What our speed and memory are worth: measured in fresh processes, us and a peer in turn where there is one."""
