"""Many runs of one config that differ in a few keys; see ``alignkit.sweep.command``."""
