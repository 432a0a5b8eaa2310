"""litellm: an image through its OpenAI provider."""

import json
import sys

import litellm

made = litellm.image_generation(
    prompt="a red star", model="openai/fake", n=2, api_base=f"{sys.argv[1]}/v1", api_key="any"
)
json.dump([image["b64_json"][:5] for image in made.data], sys.stdout)
