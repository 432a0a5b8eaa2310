"""The client that openapi-python-client writes, beside which this file is copied."""

import json
import sys

from bestofn_client import Client
from bestofn_client.api.jobs import generate
from bestofn_client.api.open_ai import generate_images, list_models
from bestofn_client.models import GenerateRequest, ImagesRequest

client = Client(base_url=sys.argv[1], timeout=600)
job = generate.sync(client=client, body=GenerateRequest(prompt="p", num_inference_steps=1))
images = generate_images.sync(client=client, body=ImagesRequest(prompt="p", n=2, num_inference_steps=1))
models = list_models.sync(client=client)
json.dump([job.status, len(job.candidates), len(images.data), models.data[0].id], sys.stdout)
