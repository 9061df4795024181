export NITRO_PRESET=node
