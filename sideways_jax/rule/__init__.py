"""The rule of the paper: one module, a group, all of them; who hears whom; clock tables."""
