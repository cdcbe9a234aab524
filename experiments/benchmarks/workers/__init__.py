"""Programs that suites start in processes of their own, and what they run there."""
