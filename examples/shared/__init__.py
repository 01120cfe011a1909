"""What the pipelines share.

command : the command line; its Pipeline is all that a pipeline has to give. config : settings and
    presets.
training : the loop, checkpoints, several processes. signals : what ends it. plan : how long it
    takes. schedules : learning rates. pictures : batches.
modules : the encoder and the slot module. diagnostics : how slots are used. plots, report : what is
    shown. show : a user's pictures.
files : atomic writes, and a lock.
"""
