"""OpenAI's request bodies -> what the library is asked; its responses -> OpenAI's bodies.

No web framework, no MLX and no thread in here: values in, values out. The rest of the server sees ``ask.py``, the
``read`` and ``Writer`` of each module, ``fields.parse``, ``images.opened`` and ``errors.py``.
"""
