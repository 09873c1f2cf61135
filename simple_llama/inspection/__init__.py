"""Examples as they will be trained, and what became of the others: for a look before a run."""
