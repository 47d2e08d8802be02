"""Event sources other than ROS topics: cameras, network streams and recordings. No ROS here."""
