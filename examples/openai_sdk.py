"""Generate with the openai package, which takes bestofn for an images API.

Needs `pip install openai` and a server: the address in BESTOFN_SERVER, else port 8000. bestofn itself is not imported.
"""

import base64
import os
from pathlib import Path

import openai

server = os.environ.get("BESTOFN_SERVER", "http://127.0.0.1:8000").rstrip("/")
client = openai.OpenAI(base_url=f"{server}/v1", api_key=os.environ.get("BESTOFN_API_KEY", "unused"))

response = client.images.generate(
    prompt="a photo of a red star left of a blue circle",
    n=2,  # winners, best first
    quality="medium",  # candidates: low 4, medium 16, high 32, xhigh 64, max 128
    extra_body={"seed": 7},  # any field of POST /generate
)
for rank, image in enumerate(response.data, 1):
    path = Path(f"openai-{rank}.png")
    path.write_bytes(base64.b64decode(image.b64_json))
    print(f"rank {rank}: seed {image.seed}, score {image.score:.3f}, {path}")

try:
    client.images.generate(prompt="a photo of a ring", n=99)
except openai.BadRequestError as error:
    print(f"refused: {error.message}")
