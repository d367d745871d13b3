"""Exit with 0 if the server in this container answers requests, and else with one line and 1.

A script for Python, because an image may have no shell and no curl.
"""

import os
import ssl
import sys
import urllib.request

url = os.environ.get("KWISE_HEALTH_URL", "http://127.0.0.1:8000/readyz")
# The certificate is for the name that clients use. This call stays in the container.
unverified = ssl.create_default_context()
unverified.check_hostname = False
unverified.verify_mode = ssl.CERT_NONE
# Docker may set HTTP_PROXY in each container, and a proxy cannot reach this one.
opener = urllib.request.build_opener(
    urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unverified)
)
try:
    opener.open(url, timeout=4).close()
except (OSError, ValueError) as error:  # a refused connection, another status, or no URL
    sys.exit(f"{url}: {error}")
