"""What users type, and what they see."""
