"""A trained model in use: replies, one at a time or by the file, and the model handed on."""
