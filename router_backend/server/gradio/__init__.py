"""The door to Gradio: its page, its files, and calls of its clients; mounted when it is first asked for."""
