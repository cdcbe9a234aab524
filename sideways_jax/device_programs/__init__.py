"""A program for every device: one process dispatches them, and the devices work at the same time.

`places` says where modules are, `links` who sends what to whom, `group_step` what one device does
at a step, which `steps` dispatches; `schedule` does both for exact backprop. Training (`clips`,
`streams`) and inference are on top.
"""
