"""The way to a judge: any endpoint that speaks OpenAI's chat completions, Gemini on Vertex AI among them."""

import json
import threading
from collections.abc import Callable
from typing import Any

from rlhf.data.file_systems import redacted
from rlhf.errors import ConfigError
from rlhf.evaluator.judge.config import JudgeConfig
from rlhf.evaluator.judge.words import answer_of
from rlhf.progress import say
from rlhf.report.page import visible
from rlhf.secrets import key_in

OPENAI = "https://api.openai.com/v1"
NO_KEY = "none"  # what is sent to endpoints that take no key: the client wants one
LONGEST_REPORT = 200  # characters of what a server said, in messages

# Left out where an endpoint refuses them: reasoning models refuse a temperature, some servers the rest.
SAMPLING = {"response_format": {"type": "json_object"}, "seed": 0, "temperature": 0}


class NoAnswer(Exception):
    """A question without a valid answer. `cause` is one of few, to be counted; the text says more."""

    def __init__(self, cause: str, text: str = ""):
        super().__init__(text)
        self.cause = cause


class Client:
    """Puts questions to the judge, from several threads. The key is in no message, nor in anything that is written."""

    def __init__(self, config: JudgeConfig):
        """
        Raises:
            ConfigError: The key or the credentials are not there.
        """
        from openai import OpenAI

        self._config = config
        self._url, self._key = _endpoint(config)
        self._client = OpenAI(
            base_url=self._url, api_key=self._key, timeout=config.timeout_seconds, max_retries=config.retries
        )
        self._sampling: dict[str, Any] = SAMPLING
        self._lock = threading.Lock()

    def close(self) -> None:
        self._client.close()

    def ask(self, messages: list[dict[str, str]]) -> str:
        """A, B or tie.

        Raises:
            NoAnswer: None came, or one that says none of these plainly.
            ConfigError: The endpoint refuses the key, or does not know the model.
        """
        import openai

        try:
            content = self._content(self._send(messages))
        except openai.APITimeoutError:
            raise NoAnswer("timeout", f"no answer within {self._config.timeout_seconds:g} s") from None
        except openai.APIConnectionError as error:
            raise NoAnswer("no connection", self._told(error.__cause__ or error)) from None
        except openai.AuthenticationError as error:
            raise ConfigError(
                f"judge: {self._url} does not accept the key ({self._told(error)}); see that the variable which "
                "api_key_env names holds the right one"
            ) from None
        except openai.NotFoundError as error:
            raise ConfigError(
                f"judge: {self._url} knows no model {self._config.model!r}, or nothing is there "
                f"({self._told(error)}); see judge.model and judge.base_url"
            ) from None
        except openai.APIStatusError as error:
            raise NoAnswer(f"HTTP {error.status_code}", self._told(error)) from None
        better = answer_of(content)
        if better is None:
            raise NoAnswer("nonsense", self._told(content))
        return better

    def _send(self, messages: list[dict[str, str]]) -> str:
        """The body of the response."""
        import openai

        sampling, refused = self._sampling, None
        while True:
            try:
                response = self._client.chat.completions.with_raw_response.create(
                    model=_model(self._config), messages=messages, **sampling
                )
                break
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                refused = refused or error
                if not sampling:
                    raise refused from None
                sampling = _fewer(sampling, f"{error} {error.body}")
        if refused is not None:
            self._sample_without(sampling)
        return response.text

    def _sample_without(self, sampling: dict[str, Any]) -> None:
        """What did without, does from now on."""
        with self._lock:
            left_out = [name for name in self._sampling if name not in sampling]
            if left_out:
                say("judge", f"the endpoint does not take {', '.join(left_out)}; asking without")
                self._sampling = {k: v for k, v in self._sampling.items() if k in sampling}

    def _content(self, body: str) -> str:
        """What the judge said."""
        try:
            choice = json.loads(body)["choices"][0]
            message = choice["message"]
            content, refusal, ended = message.get("content"), message.get("refusal"), choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise NoAnswer("nonsense", self._told(body)) from None
        if refusal or ended == "content_filter":
            raise NoAnswer("refused", self._told(refusal or ended))
        if ended == "length":  # what stands last need not be the answer
            raise NoAnswer("cut off", "the endpoint's limit of tokens ended the answer")
        if not isinstance(content, str) or not content.strip():
            raise NoAnswer("nonsense", "an empty answer")
        return content

    def _told(self, what: object) -> str:
        """A line of what a server or an error said, without the key: some servers repeat it."""
        text, key = str(what), self._client.api_key
        if key and key != NO_KEY:
            text = text.replace(key, "…")
        text = visible(" ".join(redacted(text).split()))
        return text if len(text) <= LONGEST_REPORT else text[: LONGEST_REPORT - 1] + "…"


def _fewer(sampling: dict[str, Any], complaint: str) -> dict[str, Any]:
    """Without what a server names; if it names nothing, first without JSON, then without all."""
    named = [name for name in sampling if name in complaint] or ["response_format"]
    fewer = {name: value for name, value in sampling.items() if name not in named}
    return fewer if fewer != sampling else {}


def _endpoint(config: JudgeConfig) -> tuple[str, str | Callable[[], str]]:
    """The base URL, and the key or what gives it."""
    if config.vertex_project:
        return _vertex_url(config.vertex_project, config.vertex_location), _vertex_token()
    name = config.api_key_env or ("" if config.base_url else "OPENAI_API_KEY")
    if not name:
        # A key of OpenAI's that happens to be in the environment is nobody else's business.
        return config.base_url, NO_KEY
    return config.base_url or OPENAI, key_in(name, "judge.api_key_env")


def _vertex_url(project: str, location: str) -> str:
    """Vertex AI's endpoint for OpenAI's client.

    https://cloud.google.com/vertex-ai/generative-ai/docs/multimodal/call-vertex-using-openai-library
    """
    host = "aiplatform.googleapis.com" if location == "global" else f"{location}-aiplatform.googleapis.com"
    return f"https://{host}/v1/projects/{project}/locations/{location}/endpoints/openapi"


def _vertex_token() -> Callable[[], str]:
    """What gives a token of the machine's credentials, a new one where the last is out of date."""
    import google.auth
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.requests import Request

    try:
        credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    except GoogleAuthError as error:
        raise ConfigError(f"judge.vertex_project: no credentials of Google Cloud on this machine ({error})") from error
    lock = threading.Lock()

    def token() -> str:
        with lock:
            if not credentials.valid:
                try:
                    credentials.refresh(Request())
                except GoogleAuthError as error:
                    raise ConfigError(f"judge.vertex_project: the credentials give no token ({error})") from None
            return credentials.token

    return token


def _model(config: JudgeConfig) -> str:
    """Vertex AI wants Gemini's publisher before its name."""
    return f"google/{config.model}" if config.vertex_project and "/" not in config.model else config.model
