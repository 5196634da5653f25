"""The Space's door: Hugging Face runs this file from the repo's root."""

from router_backend.cli import app

if __name__ == "__main__":
    app(["serve"])
