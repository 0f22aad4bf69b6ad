"""Has the AWS CLI read commands and check them against botocore's models; nothing is sent.

Takes a file with the words of each command: words end with a zero byte, commands with two. Prints a JSON object for each that is a
call: service, operation and parameters.
"""

import json
import sys

import awscli.clidriver
from botocore.awsrequest import AWSResponse


class Raw:
    def __init__(self, body):
        self.body = body

    def stream(self, *_):
        yield self.body


def note(params, model, **_):
    line = {"service": model.service_model.service_name, "operation": model.name, "parameters": params}
    print(json.dumps(line), file=calls)


def answer(request, event_name, **_):
    _, service, operation = event_name.split(".")
    body = "{}"
    if service in ("auto-scaling", "ec2", "iam", "sts"):
        body = "<R><{0}Result></{0}Result></R>".format(operation)
    return AWSResponse(request.url, 200, {}, Raw(body.encode()))


calls, sys.stdout = sys.stdout, sys.stderr
driver = awscli.clidriver.create_clidriver()
driver.session.register("before-parameter-build", note)
driver.session.register("before-send", answer)
with open(sys.argv[1]) as file:
    commands = file.read().split("\0\0")
for command in commands[:-1]:
    words = command.split("\0")
    assert driver.main(words) == 0, words
