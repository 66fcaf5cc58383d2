"""A checkpoint in the forms that other programs load: transformers, llama.cpp, Ollama."""
