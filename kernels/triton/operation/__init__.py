"""The operation on whole sequences, with its gradients."""
