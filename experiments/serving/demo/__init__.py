"""The demo: a question about a picture at every scale, in a browser. Only `page` needs Gradio."""
