"""Keywords that transformers' users give a processor: what is done in any case, or what to give instead."""

_ARRAYS = ((None, "mlx", "mx"), "arrays are MLX's, and numpy.array(...) makes numpy's of them, so leave it out")
_ROWS = ((None, True, "longest"), "rows of several prompts are always padded to the longest, so leave it out")
_WHOLE = ((None, False), "prompts are never cut, so shorten the prompt")
_SPACES = ((None, False, True), "leave it out")
ENCODING = {
    "return_tensors": _ARRAYS,
    "padding": _ROWS,
    "truncation": _WHOLE,
    "max_length": ((None,), "prompts are never cut, so leave it out"),
    "videos": ((None,), "mlx_fastvlm.generate(..., video=...) takes videos"),
}
TEMPLATE = {
    **ENCODING,
    "tools": ((None, []), "FastVLM was not trained to call tools; ask for json_schema=... instead"),
    "documents": ((None, []), "write them into a message"),
    "continue_final_message": ((None, False), "ask for the answer anew, or go on from ids with model.generate"),
    "chat_template": ((None,), "set processor.chat_template"),
    "processor_kwargs": ((None, {}), "give image_size or padding_side as they are"),
}
DECODING = {"clean_up_tokenization_spaces": _SPACES}
LOADING = {
    "use_fast": ((None, False, True), "leave it out"),
    "trust_remote_code": ((None, False, True), "no code of a checkpoint ever runs, so leave it out"),
    "subfolder": ((None, ""), "give the folder's whole path"),
}
