"""What each device of a mesh holds, and how signals travel; independent of any learning rule."""
