"""Using a trained model: chat, replies to a file of prompts, export."""
