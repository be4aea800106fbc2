"""The WebUI: a server for the browser. Nothing in it imports torch or diffusers."""
