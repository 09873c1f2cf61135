"""The pipeline's steps: each reads params, calls the library once, writes its outs."""
