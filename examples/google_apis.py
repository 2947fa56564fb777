"""Four Google APIs, a page at a time, for worker.py, and push channels of two of them, for
push_worker.py: HTTP and JSON, no SQL.

Copy it and write access_token(). A source of your own needs a page function of its own, in PAGES,
and, if it has push, two functions in CHANNELS.

    API_URL      another host for all APIs, for tests
    PAGE_SIZE    items to ask for per page
    PUSH_URL     where Calendar finds push_endpoint.*: an https URL
    PUSH_TOPIC   where Gmail publishes: projects/.../topics/...
    PUSH_TOKEN   the secret in the URL of that topic's push subscription
"""
import json
import os
import re
import secrets
import uuid
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

API_URL = os.environ.get("API_URL")
PAGE_SIZE = os.environ.get("PAGE_SIZE", "100")
NAME = os.environ.get("WORKER_NAME", f"worker-{os.getpid()}")
PUSH_URL, PUSH_TOPIC, PUSH_TOKEN = map(os.environ.get, ("PUSH_URL", "PUSH_TOPIC", "PUSH_TOKEN"))
MAILBOX = "/gmail/v1/users/me"
OVERLAP = timedelta(seconds=60)     # how far a cursor that is a time goes back


def access_token(row, is_refused):
    """Yours to write: an OAuth access token of the user's account; a new one if that is refused.

    Where the token endpoint says invalid_grant, raise ApiError with that answer.
    """
    raise NotImplementedError("access_token() in google_apis.py is not written yet")


# ---- One page of each source
#
# A page function gets the row and the place. The place is a small dictionary of what must survive
# if the worker dies between two pages; the worker keeps it in page_token. Of its keys, the page
# functions use
#     page     the provider's token of the page to fetch; none = the first one
#     start    what only the first page could tell: the cursor to store after the last one
# They return {id: item, or None if deleted}, the next page's token, and the cursor, which holds
# after the last page only. All pages of a listing must have the same query, so it is made of
# the row alone.
#
# Calendar and Tasks have a row for each calendar or task list, by its id. Their row '' is the
# account's list of them, and an item of it a calendar or task list, without what is in it.

def is_list(row):
    return row.resource == "" and row.source in ("google_calendar", "google_tasks")


def calendar_path(row):
    if is_list(row):
        return "/calendar/v3/users/me/calendarList"
    return f"/calendar/v3/calendars/{quote(row.resource, safe='')}/events"


def calendar_list_page(row, place):
    body, _ = get(row, "www", calendar_path(row), maxResults=PAGE_SIZE,
                  syncToken=row.sync_token, pageToken=place.get("page"))
    # a full listing leaves out the hidden ones, and so do we when an incremental one tells of them
    items = {c["id"]: None if c.get("deleted") or c.get("hidden") else c
             for c in body.get("items", [])}
    return items, body.get("nextPageToken"), {"sync_token": body.get("nextSyncToken")}


def calendar_page(row, place):
    if is_list(row):
        return calendar_list_page(row, place)
    body, _ = get(row, "www", calendar_path(row), maxResults=PAGE_SIZE, syncToken=row.sync_token,
                  pageToken=place.get("page"))
    # an occurrence that was taken out of a series is kept: the series does not tell of it
    items = {e["id"]: None if e["status"] == "cancelled" and "recurringEventId" not in e else e
             for e in body.get("items", [])}
    return items, body.get("nextPageToken"), {"sync_token": body.get("nextSyncToken")}


def contacts_page(row, place):
    # without metadata, a deleted contact looks like one that has lost its names
    body, _ = get(row, "people", "/v1/people/me/connections",
                  personFields="names,emailAddresses,metadata", requestSyncToken="true",
                  pageSize=PAGE_SIZE, syncToken=row.sync_token, pageToken=place.get("page"))
    items = {}
    for person in body.get("connections", []):
        metadata = person.get("metadata", {})
        for old in metadata.get("previousResourceNames", []):
            items.setdefault(old, None)
        items[person["resourceName"]] = None if metadata.get("deleted") else person
    return items, body.get("nextPageToken"), {"sync_token": body.get("nextSyncToken")}


def task_lists_page(row, place):
    body, _ = get(row, "tasks", "/tasks/v1/users/@me/lists", maxResults=PAGE_SIZE,
                  pageToken=place.get("page"))
    # there is no cursor: each listing is a full one
    return {t["id"]: t for t in body.get("items", [])}, body.get("nextPageToken"), {}


def tasks_page(row, place):
    if is_list(row):
        return task_lists_page(row, place)
    path = f"/tasks/v1/lists/{quote(row.resource, safe='')}/tasks"
    since = row.updated_min and row.updated_min.astimezone(timezone.utc).isoformat()
    body, headers = get(row, "tasks", path, maxResults=PAGE_SIZE, updatedMin=since,
                        pageToken=place.get("page"), showDeleted="true", showHidden="true",
                        showCompleted="true")
    # The cursor is a time: by the server's clock, never ours, and of the first page, because
    # what changes while we turn pages must come again next time.
    place.setdefault("start", headers["Date"])
    items = {t["id"]: None if t.get("deleted") else t for t in body.get("items", [])}
    cursor = {"updated_min": parsedate_to_datetime(place["start"]) - OVERLAP}
    return items, body.get("nextPageToken"), cursor


def gmail_page(row, place):
    if row.history_id:
        body, _ = get(row, "gmail", f"{MAILBOX}/history", startHistoryId=row.history_id,
                      maxResults=PAGE_SIZE, pageToken=place.get("page"))
        place.setdefault("start", body["historyId"])
        ids = {m["id"] for record in body.get("history", []) for m in record["messages"]}
    else:
        if "start" not in place:    # before the listing: what arrives meanwhile is history then
            place["start"] = get(row, "gmail", f"{MAILBOX}/profile")[0]["historyId"]
        body, _ = get(row, "gmail", f"{MAILBOX}/messages", maxResults=PAGE_SIZE,
                      pageToken=place.get("page"))
        ids = {m["id"] for m in body.get("messages", [])}
    items = {name: message(row, f"{MAILBOX}/messages/{name}") for name in sorted(ids)}
    return items, body.get("nextPageToken"), {"history_id": place["start"]}


def message(row, path):
    try:
        found = get(row, "gmail", path, format="minimal")[0]
    except ApiError as error:
        if error.status == 404:
            return None             # deleted since it was listed
        raise
    # a listing leaves these out, and so do we when the history tells of them
    return None if {"SPAM", "TRASH"} & set(found.get("labelIds", [])) else found


PAGES = {"google_calendar": calendar_page, "google_tasks": tasks_page,
         "google_gmail": gmail_page, "google_contacts": contacts_page}


# ---- Push channels
#
# A watch function returns what mark_channel_opened() takes. Both get a row of
# claim_push_channels().

def watch_calendar(row):
    if not PUSH_URL:
        raise ValueError("PUSH_URL is not set")
    channel = {"id": str(uuid.uuid4()), "token": secrets.token_urlsafe(32), "type": "web_hook",
               "address": PUSH_URL}
    opened = post(row, "www", f"{calendar_path(row)}/watch", channel)
    return {"channel_id": channel["id"], "token": channel["token"],
            "provider_ref": opened["resourceId"], "expires_at": moment(opened["expiration"])}


def stop_calendar(row):
    post(row, "www", "/calendar/v3/channels/stop",
         {"id": row.channel_id, "resourceId": row.provider_ref})


def watch_mailbox(row):
    """A mailbox has one watch, which this opens or prolongs, and no id but its address."""
    if not (PUSH_TOPIC and PUSH_TOKEN):
        raise ValueError("PUSH_TOPIC and PUSH_TOKEN are not set")
    address = get(row, "gmail", f"{MAILBOX}/profile")[0]["emailAddress"]
    opened = post(row, "gmail", f"{MAILBOX}/watch", {"topicName": PUSH_TOPIC})
    return {"channel_id": address, "token": PUSH_TOKEN, "expires_at": moment(opened["expiration"])}


def stop_mailbox(row):
    post(row, "gmail", f"{MAILBOX}/stop", {})


def moment(milliseconds):
    return datetime.fromtimestamp(int(milliseconds) / 1000, timezone.utc)


CHANNELS = {"google_calendar": (watch_calendar, stop_calendar),
            "google_gmail": (watch_mailbox, stop_mailbox)}


# ---- HTTP

class ApiError(Exception):
    """An answer that is an error, sorted by what is to be done about it."""

    def __init__(self, path, status, text, headers):
        reasons, message = read_error(text)
        super().__init__(f"HTTP {status} {' '.join(sorted(reasons))}: {message}")
        self.status, self.reasons = status, reasons
        self.retry_after = retry_after(headers, message)
        self.cursor_is_dead = (status == 410 and "deleted" not in reasons
                               or status == 404 and path.endswith("/history")
                               or status == 400 and "EXPIRED_SYNC_TOKEN" in reasons)
        # "Slow down" comes with two numbers. Any other 403 is a no.
        self.is_rate_limit = status == 429 or status == 403 and bool(reasons & {
            "rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded", "RATE_LIMIT_EXCEEDED"})
        if status == 401 or reasons & {"invalid_grant", "insufficientPermissions",
                                       "ACCESS_TOKEN_SCOPE_INSUFFICIENT"}:
            self.kind = "auth"          # the user must sign in again: the account is parked
        elif status in (0, 408) or status >= 500:
            self.kind = "transient"     # the network or the server: again soon
        else:
            self.kind = "permanent"     # again soon will not help


def read_error(text):
    """The reasons and the message, from any of the forms in which Google's errors come."""
    try:
        error = json.loads(text)["error"]
        if isinstance(error, str):      # the token endpoint's: {"error": "invalid_grant"}
            return {error}, error
        parts = error.get("errors", []) + error.get("details", [])
        return {part["reason"] for part in parts if "reason" in part}, error.get("message", "")
    except (ValueError, LookupError, TypeError, AttributeError):
        return set(), text[:200]


def retry_after(headers, message):
    """The wait that the provider asks for, by its own clock; None if it does not say."""
    value = headers.get("Retry-After") or ""
    if value.isdigit():
        return timedelta(seconds=int(value))
    moment = re.search(r"[Rr]etry after (\S+)Z", message)
    try:
        until = (datetime.fromisoformat(f"{moment[1]}+00:00") if moment
                 else parsedate_to_datetime(value))
        return until - parsedate_to_datetime(headers["Date"])
    except (TypeError, ValueError):
        return None


def get(row, host, path, **query):
    """GET as the row's account: JSON and headers. Raises ApiError, also if the network fails."""
    query = urlencode({name: value for name, value in query.items() if value is not None})
    return send(row, host, path, f"?{query}")


def post(row, host, path, body):
    return send(row, host, path, data=json.dumps(body).encode())[0]


def send(row, host, path, query="", data=None, is_refused=False):
    url = API_URL or f"https://{host}.googleapis.com"
    token = access_token(row, is_refused)       # what it raises is not for users to read
    headers = {"Authorization": f"Bearer {token}", "User-Agent": NAME}
    if data:
        headers["Content-Type"] = "application/json"
    try:
        try:
            request = Request(f"{url}{path}{query}", data, headers)
            with urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or "{}"), answer.headers
        except HTTPError as error:
            if error.code == 401 and not is_refused:        # once more, with a new token
                return send(row, host, path, query, data, is_refused=True)
            text = error.read().decode(errors="replace")
            raise ApiError(path, error.code, text, error.headers) from None
    except ValueError as error:         # its words may be a header, with the token
        raise ApiError(path, 0, type(error).__name__, {}) from error
    except (OSError, HTTPException) as error:
        raise ApiError(path, 0, f"{type(error).__name__}: {error}", {}) from error
