"""What threads and worker processes need."""
