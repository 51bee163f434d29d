"""``python -m mlx_fastvlm.lora`` as a script, as mlx.launch starts one."""

import sys

from mlx_fastvlm.lora import main

sys.exit(main())
