"""The HTTP server: OpenAI's, SGLang's and unmask's own routes over one engine (extra `serve`)."""
