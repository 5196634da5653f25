"""The Space's door: Hugging Face runs this file from the repo's root."""

from router_backend.serve import serve

if __name__ == "__main__":
    raise SystemExit(serve())
