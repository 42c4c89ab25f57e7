"""The gateway: an OTLP receiver in front of the pipeline, for traces of other processes in any language."""
