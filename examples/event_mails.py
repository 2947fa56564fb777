#!/usr/bin/python3
"""Turns events into mails: asks users to sign in again, and warns support.

Copy it, write the texts and the query for addresses below anew, and make its table:

    event_mails.py --table | psql

It needs psycopg 3 (Debian: python3-psycopg) and a login role that was given to
syncstate.grant_worker() and may SELECT, INSERT and UPDATE sync_event_log and read the addresses.
Run one or several.

    DATABASE_URL   which database; without it libpq's PGHOST, PGDATABASE and so on (a connection
                   of our own: LISTEN does not work through a transaction pooler)
    SMTP_HOST, SMTP_PORT            where to send: localhost and 25
    SMTP_USER, SMTP_PASSWORD        with these, STARTTLS and a login come first
    MAIL_FROM, SUPPORT              the sender, and who is warned
    POLL                            how often to look without being notified: 60 seconds

Each event is written down once, by its id, in the transaction that takes it; so what comes later
may crash. A mail is marked as begun, and that is committed, when the server has accepted its
recipient; and as ended when the server has accepted its text too. A crash before the first mark
sends it later, a crash after the second one does not. A crash in between, a
moment in which we cannot know whether the server has the mail, leaves it in doubt: we do not send
it twice, so it may not have been sent at all. No sender can do better; a person can ask the server:

    SELECT * FROM sync_event_log WHERE begun_at < now() - interval '10 minutes' AND ended_at IS NULL;
    UPDATE sync_event_log SET begun_at = NULL WHERE id = ...;   -- sends it (again)

The Message-ID is made of the event's id, so that many recipients show a second one only once. What
happens beyond the server, which may repeat or lose mails too, is not in our hands.
"""
import email.policy
import email.utils
import os
import select
import signal
import smtplib
import socket
import ssl
import sys
from email.message import EmailMessage
from string import Template

import psycopg
from psycopg.rows import namedtuple_row

DATABASE_URL = os.environ.get("DATABASE_URL", "")
SMTP_HOST = os.environ.get("SMTP_HOST", "localhost")
SMTP_PORT = int(os.environ.get("SMTP_PORT", "25"))
SMTP_USER = os.environ.get("SMTP_USER")
SMTP_PASSWORD = os.environ.get("SMTP_PASSWORD", "")
MAIL_FROM = os.environ.get("MAIL_FROM", "sync@localhost")
SUPPORT = os.environ.get("SUPPORT", "support@localhost")
POLL = float(os.environ.get("POLL", "60"))  # seconds, if no notification comes
WAIT = "5 minutes"      # after a server said "later"

# The address of a user, by syncstate's user_id; at Supabase, auth.users.
ADDRESS = "SELECT email FROM users WHERE id = %s"

# What is written to whom, by event and reason; all other events are only kept. To is "user" or
# "support". $source, $account, $resource, $user_id, $at, $reason and $detail are of the event.
MAILS = {
    ("parked", "auth"): ("user", "Please reconnect your Google account", """\
Hello,

Google no longer lets us read your account, so what you see with us is no longer up to date.
Please sign in again:

    https://app.example.com/settings/accounts

If you ended our access on purpose, there is nothing to do.
"""),
    ("parked", "failures"): ("support", "$source gave up", """\
$source of user $user_id, account "$account", resource "$resource", has failed too often and is
parked since $at. The last error:

    $detail
"""),
    ("parked", "token_loop"): ("support", "$source loses its cursors", """\
$source of user $user_id, account "$account", resource "$resource", is parked since $at: the
provider refuses each cursor that it gave.
"""),
    ("failing", None): ("support", "$source fails", """\
$source of user $user_id, account "$account", resource "$resource", has been failing for a while
and will be parked if it keeps failing. The last error, at $at:

    $detail
"""),
    ("sweep_withheld", None): ("support", "$source: many items vanished", """\
A full sync of $source of user $user_id, account "$account", resource "$resource", did not list
many items that we have. They were not deleted. $detail
"""),
}

TABLE = """\
CREATE TABLE sync_event_log (
    LIKE syncstate.sync_event,
    mail_to text,               -- "user" or "support"; null: nobody is told
    not_before timestamptz,     -- the server said "later"
    begun_at timestamptz,
    ended_at timestamptz,
    why_not text,               -- it was not sent
    PRIMARY KEY (id)
);
CREATE INDEX ON sync_event_log (user_id, account, at);
CREATE INDEX ON sync_event_log (at, id) WHERE mail_to IS NOT NULL AND begun_at IS NULL AND ended_at IS NULL;
"""

# One that nobody else has in work. It is stale if what it would tell is no longer so.
NEXT = """
    SELECT e.*, CASE e.event
        -- the row that lost its account's access may be paused or gone itself
        WHEN 'parked' THEN NOT EXISTS (
            SELECT FROM syncstate.sync_state AS p
            WHERE (p.user_id, p.account, p.parked_reason) = (e.user_id, e.account, e.reason)
                AND (e.reason = 'auth' OR (p.source, p.resource) = (e.source, e.resource)))
        WHEN 'failing' THEN s.troubled_at IS NULL
        ELSE false END AS is_stale
    FROM sync_event_log AS e
        LEFT JOIN syncstate.sync_state AS s
            ON (s.user_id, s.account, s.source, s.resource) = (e.user_id, e.account, e.source, e.resource)
    WHERE e.mail_to IS NOT NULL AND e.begun_at IS NULL AND e.ended_at IS NULL
        AND (e.not_before <= now()) IS NOT FALSE
    ORDER BY e.at, e.id LIMIT 1
    FOR UPDATE OF e SKIP LOCKED"""


class Mailer:
    def __init__(self, db, stop):
        self.db, self.stop = db, stop
        self.notified = False
        db.add_notify_handler(self.on_notify)
        db.execute("LISTEN syncstate_events")   # first of all, so that nothing falls in between

    def run(self):
        while not self.stop.asked:
            self.notified = False
            while not self.stop.asked and self.take():
                pass
            try:
                self.send_all()
            except (OSError, smtplib.SMTPException) as error:
                log(f"mail server: {error}")
            self.sleep()

    def take(self):
        """Writes down some events, and who is told of them; false if there are none."""
        with self.db.transaction():
            events = self.db.execute("SELECT * FROM syncstate.take_sync_events(100)").fetchall()
            for event in events:
                mail_to, _, _ = mail_of(event) or (None, None, None)
                names = ", ".join(event._fields)
                self.db.execute(f"""INSERT INTO sync_event_log ({names}, mail_to)
                                    VALUES ({"%s, " * len(event)} %s) ON CONFLICT DO NOTHING""",
                                (*event, mail_to))
        return bool(events)

    def send_all(self):
        smtp = None
        try:
            while not self.stop.asked:
                with self.db.transaction():     # its lock keeps others off until it has begun
                    event = self.db.execute(NEXT).fetchone()
                    if event is None:
                        if smtp is not None:
                            smtp.quit()
                        return
                    text = self.text(event)
                    if text is None:
                        continue
                    smtp = smtp or connect()
                    if not self.address_is_taken(smtp, event, text["To"]):
                        continue
                    self.set(event, "begun_at = now()")
                try:
                    code, answer = smtp.data(text.as_bytes())
                except smtplib.SMTPDataError as error:      # it did not want to see the text
                    code, answer = error.smtp_code, error.smtp_error
                self.set_answer(event, code, answer)
        finally:
            if smtp is not None:
                smtp.close()

    def text(self, event):
        """Returns the mail to send. If there is none, records why and returns None."""
        if event.is_stale:
            return self.end(event, "it is no longer so")
        mail_to, subject, body = mail_of(event)
        try:
            address = SUPPORT
            if mail_to == "user":
                row = self.db.execute(ADDRESS, (event.user_id,)).fetchone()
                if row is None or not row[0]:
                    return self.end(event, "no address")
                address = row[0]
            email.utils.parseaddr(address)[1].encode("ascii")
            values = {name: "" if value is None else value for name, value in event._asdict().items()}
            message = EmailMessage(email.policy.SMTP.clone(cte_type="7bit"))
            message["From"], message["To"] = MAIL_FROM, address
            message["Subject"] = Template(subject).substitute(values)
            message["Date"] = email.utils.localtime()
            message["Message-ID"] = f"<{event.id}@{MAIL_FROM.rpartition('@')[2].rstrip('>')}>"
            message["Auto-Submitted"] = "auto-generated"
            message.set_content(Template(body).substitute(values))
            message.as_bytes()
            return message
        except (ValueError, LookupError) as error:      # such an address, or a template of ours
            return self.end(event, repr(error))

    def address_is_taken(self, smtp, event, address):
        """Whether the server takes the recipient; if not, writes down what it says."""
        code, answer = smtp.docmd("RSET")
        if code == 250:
            code, answer = smtp.mail(email.utils.parseaddr(MAIL_FROM)[1])
        if code != 250:                         # that concerns all mails
            raise smtplib.SMTPSenderRefused(code, answer, MAIL_FROM)
        code, answer = smtp.rcpt(email.utils.parseaddr(address)[1])
        if code in (250, 251):
            return True
        self.set_answer(event, code, answer)
        return False

    def set_answer(self, event, code, answer):
        """Writes down that a mail was sent, or will be later, or will not be."""
        answer = f"{code} {answer.decode(errors='replace')}"
        if 200 <= code < 300:
            self.set(event, "ended_at = now()")
            log(f"{event.event} of {event.source}, user {event.user_id}: sent to {event.mail_to}")
        elif code < 500:
            self.set(event, f"begun_at = NULL, not_before = now() + interval '{WAIT}'")
            log(f"{event.id}: later: {answer}")
        else:
            self.end(event, answer)

    def end(self, event, why_not):
        self.set(event, "begun_at = NULL, ended_at = now(), why_not = %s", why_not)
        log(f"{event.id}: not sent: {why_not}")

    def set(self, event, what, *values):
        self.db.execute(f"UPDATE sync_event_log SET {what} WHERE id = %s", (*values, event.id))

    def sleep(self):
        if not self.notified and not self.take_notifications():
            select.select([self.db, self.stop], [], [], POLL)
            self.take_notifications()

    def take_notifications(self):
        self.db.pgconn.consume_input()
        while self.db.pgconn.notifies():
            self.notified = True
        return self.notified

    def on_notify(self, _):                     # one came along with the answer to a query
        self.notified = True


class Stop:
    """SIGTERM and SIGINT, in a form that select() can wait for: a mail in work is sent first."""

    def __init__(self):
        self.asked = False
        self.reader, self.writer = socket.socketpair()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.ask)

    def ask(self, *_):
        self.asked = True
        self.writer.send(b"!")

    def fileno(self):
        return self.reader.fileno()


def mail_of(event):
    return MAILS.get((event.event, event.reason))


def connect():
    smtp = smtplib.SMTP(SMTP_HOST, SMTP_PORT, timeout=60)
    if SMTP_USER:
        smtp.starttls(context=ssl.create_default_context())
        smtp.login(SMTP_USER, SMTP_PASSWORD)
    smtp.ehlo_or_helo_if_needed()
    return smtp


def log(text):
    print(f"event_mails: {text}", flush=True)


def main():
    stop = Stop()
    while not stop.asked:
        try:
            with psycopg.connect(DATABASE_URL, autocommit=True, row_factory=namedtuple_row) as db:
                Mailer(db, stop).run()
        except psycopg.OperationalError as error:
            log(f"database: {error}")
            select.select([stop], [], [], 5)


if __name__ == "__main__":
    if sys.argv[1:] == ["--table"]:
        print(TABLE, end="")
    else:
        main()
