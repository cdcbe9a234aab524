"""What the compilers for chips make of the library's programs, on a machine without a chip.

`topologies` gives devices to compile for, `programs` the programs of every execution, `hlo` reads a
compiled program, `traffic` counts its bytes, `clock` estimates its time, and `reading` says where
that goes.
"""
