"""What people see in a browser: a worker's pages, and the frame, style and charts that every page shares."""
