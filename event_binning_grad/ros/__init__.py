"""ROS 2: the node, the replayer, and what they share. Only these modules import ROS."""
