"""The main job: videos and their classes."""
