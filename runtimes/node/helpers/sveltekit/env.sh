# What makes adapter-auto take the adapter for node.
export GCP_BUILDPACKS=open-runtimes
