"""From files of conversations to micro-batches of token ids."""
