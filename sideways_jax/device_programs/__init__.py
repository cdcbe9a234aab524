"""A program for every device: one process dispatches them, and the devices work at the same time.

`places` says where modules are, `links` who sends what to whom, `group_step` and `stage` what one
device does, with the rule and with exact backprop; `steps` and `schedule` dispatch it. Training and
inference are on top.
"""
