"""langchain: its wrapper of OpenAI's images, which returns an address."""

import json
import sys
from urllib.request import urlopen

from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

wrapper = DallEAPIWrapper(base_url=f"{sys.argv[1]}/v1", api_key="any", model="fake", size="auto")
with urlopen(wrapper.run("a red star")) as picture:
    json.dump(picture.headers["content-type"], sys.stdout)
