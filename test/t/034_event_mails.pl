# examples/event_mails.py writes the mails that events call for, none twice, also
# if it is killed at the worst moment; and those it cannot know about can be found.
#
# The mail server is a sink in Python's standard library.  What it does with a
# mail is told by the recipient's name: hold_rcpt and hold_text make it wait for
# us, so that a crash comes exactly there.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $python = -x '/usr/bin/python3' ? '/usr/bin/python3' : 'python3';
plan skip_all => 'python3-psycopg is not installed; test/setup does that'
  unless system("$python -c 'import psycopg' >/dev/null 2>&1") == 0;

my $dir = PostgreSQL::Test::Utils::tempdir;
my $program = 'examples/event_mails.py';

# ------------------------------------------------------------ the mail server

append_to_file("$dir/sink.py", <<'EOS');
import os, socketserver, sys, threading, time

os.chdir(sys.argv[1])
lock = threading.Lock()
refused = set()
count = 0

def put(name, data=b""):
    with open(name + ".new", "wb") as file:
        file.write(data)
    os.rename(name + ".new", name)

def hold(name):
    put(name + ".held")
    while not os.path.exists(name + ".go"):
        time.sleep(0.01)

class Session(socketserver.StreamRequestHandler):
    def handle(self):
        self.say("220 sink")
        name = None
        while True:
            line = self.rfile.readline().decode().strip()
            verb = line.upper().split(" ")[0].split(":")[0]
            if verb == "":
                return
            elif verb == "QUIT":
                return self.say("221 bye")
            elif verb == "RCPT":
                name = line.split("<")[1].split("@")[0]
                if name == "hold_rcpt":
                    hold(name)
                if name == "refused":
                    self.say("550 no such user")
                elif name == "later" and not name in refused:
                    refused.add(name)
                    self.say("451 greylisted")
                else:
                    self.say("250 ok")
            elif verb == "DATA":
                if name == "unwanted":
                    self.say("554 no")
                    continue
                self.say("354 go ahead")
                self.text(name)
            else:
                self.say("250 ok")

    def text(self, name):
        global count
        lines = []
        while True:
            line = self.rfile.readline()
            if not line:
                return
            if line == b".\r\n":
                break
            lines.append(line[1:] if line.startswith(b".") else line)
        if name == "spam":
            return self.say("554 spam")
        with lock:
            count += 1
            put("mail.%d" % count, b"".join([name.encode(), b"\n"] + lines))
        if name.startswith("hold_text"):
            hold(name)
        if name == "silent":
            self.connection.shutdown(2)
        else:
            self.say("250 ok")

    def say(self, text):
        self.wfile.write(text.encode() + b"\r\n")

class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    def handle_error(self, *_):     # a client that is killed
        pass

server = Server(("127.0.0.1", 0), Session)
put("port", b"%d" % server.server_address[1])
server.serve_forever()
EOS
mkdir "$dir/mails";
my $sink = IPC::Run::start([ $python, "$dir/sink.py", "$dir/mails" ], '<', \undef, '>>', "$dir/sink.log", '2>&1');

# Waits until something is so; false if it does not become so.
sub until_so
{
	my ($is_so) = @_;
	my $end = time + $PostgreSQL::Test::Utils::timeout_default;
	until ($is_so->())
	{
		return 0 if time > $end;
		usleep(20_000);
	}
	return 1;
}

sub held { my ($name) = @_; return until_so(sub { -e "$dir/mails/$name.held" }) }
sub let_go { my ($name) = @_; append_to_file("$dir/mails/$name.go", '') }

# The mails to a recipient.
sub mails
{
	my ($name) = @_;
	return grep { /^\Q$name\E\n/ } map { slurp_file($_) } glob "$dir/mails/mail.*[0-9]";
}

until_so(sub { -e "$dir/mails/port" }) or die slurp_file("$dir/sink.log");
my $port = slurp_file("$dir/mails/port");

# --------------------------------------------------------------- the database

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', 'fsync = off');
$node->start;
my $table = `$python $program --table`;
$node->safe_psql('postgres', qq{
	CREATE EXTENSION syncstate;
	CREATE TABLE users (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), email text UNIQUE);
	$table
	CREATE ROLE mailer LOGIN;
	SELECT syncstate.grant_worker('mailer');
	GRANT SELECT, INSERT, UPDATE ON sync_event_log TO mailer;
	GRANT SELECT ON users TO mailer;

	-- a user whose Gmail is parked, since Google has revoked the grant
	CREATE FUNCTION revoked(name text) RETURNS void LANGUAGE sql AS \$\$
		INSERT INTO users (email) VALUES (name || '\@example.org');
		SELECT syncstate.mark_sync_failed(id, 'google_gmail', 'HTTP 401', 'auth') FROM users WHERE email = name || '\@example.org'
	\$\$;
	CREATE VIEW told AS
	SELECT split_part(email, '\@', 1) AS name, e.*
	FROM sync_event_log AS e LEFT JOIN users AS u ON u.id = e.user_id});

sub sql { return $node->safe_psql('postgres', @_) }
sub revoke { sql(join ';', map { "SELECT revoked('$_')" } @_) }

# What became of the mail to a user.
sub state_of
{
	my ($name) = @_;
	return sql(qq{SELECT concat_ws(' ', CASE WHEN begun_at IS NOT NULL THEN 'begun' END,
			CASE WHEN ended_at IS NOT NULL THEN 'ended' END, why_not)
		FROM told WHERE name = '$name' AND mail_to = 'user'});
}
sub becomes { my ($name, $state) = @_; return until_so(sub { state_of($name) eq $state }) }

# ---------------------------------------------------------------- the program

my @running;

sub start_mailer
{
	my (%env) = @_;
	local %ENV = (%ENV,
		DATABASE_URL => $node->connstr('postgres') . ' user=mailer',
		SMTP_HOST => '127.0.0.1', SMTP_PORT => $port, MAIL_FROM => 'Sync <sync@example.com>',
		SUPPORT => 'support@example.com', POLL => 3600, %env);
	my $run = IPC::Run::start([ $python, $program ], '<', \undef, '>>', "$dir/mailer.log", '2>&1');
	push @running, $run;
	return $run;
}

sub end_mailer
{
	my ($run, $signal) = @_;
	@running = grep { $_ != $run } @running;
	$run->signal($signal) if $signal;
	$run->finish;
	return $run->full_result(0);
}
END
{
	my $status = $?;
	$_->kill_kill foreach @running, $sink // ();
	$? = $status;
}

# What happened before it was started, and was notified to nobody.
revoke('ada', 'ben');
sql(q{SELECT syncstate.mark_sync_completed(gen_random_uuid(), 'google_tasks')});
my $mailer = start_mailer();
ok(becomes('ada', 'begun ended') && becomes('ben', 'begun ended'), 'what waits is told at the start');
is(scalar mails('ada'), 1, 'by one mail');
my ($mail) = mails('ada');
my $id = sql(q{SELECT id FROM told WHERE name = 'ada'});
like($mail, qr/^To: ada\@example.org\r$/m, 'to the user');
like($mail, qr/^From: Sync <sync\@example.com>\r$/m, 'from us');
like($mail, qr/^Subject: Please reconnect your Google account\r$/m, 'which says what to do');
like($mail, qr/^Message-ID: <$id\@example.com>\r$/m, 'with the id of the event');
is(sql('SELECT count(*) FROM syncstate.sync_event'), '0', 'all events are taken');
is(sql(q{SELECT count(*) FROM sync_event_log WHERE event = 'first_sync' AND mail_to IS NULL}), '1', 'and kept, also those without a mail');

# It listens: an hour is not over.
sql(q{
	SELECT syncstate.sync_clock() \g /dev/null
	INSERT INTO users VALUES ('00000000-0000-4000-8000-000000000001', 'cyd@example.org');
	SELECT syncstate.set_sync_policy('google_gmail', '{"max_failures": 4}');
	SET syncstate.clock = '2026-03-02 09:00:00+00';
	SELECT syncstate.mark_sync_failed('00000000-0000-4000-8000-000000000001', 'google_gmail', 'HTTP 500');
	SET syncstate.clock = '2026-03-09 08:59:00+00';
	SELECT syncstate.mark_sync_failed('00000000-0000-4000-8000-000000000001', 'google_gmail', E'HTTP 503\nfür $immer')});
ok(until_so(sub { mails('support') == 1 }), 'it is woken by a notification');
($mail) = mails('support');
like($mail, qr/^Subject: google_gmail fails\r$/m, 'support is warned of what fails');
like($mail, qr/HTTP 503/, 'and told the error');

# ------------------------------------------------------------------ crashes

# Between the server's yes to the text, which it has, and the mark.
revoke('hold_text');
ok(held('hold_text'), 'the server has a mail, and the program does not know it');
end_mailer($mailer, 'KILL');
let_go('hold_text');
revoke('dan');
$mailer = start_mailer();
ok(becomes('dan', 'begun ended'), 'the next one is sent after a crash');
is(scalar mails('hold_text'), 1, 'the one in doubt is not sent again');
is(state_of('hold_text'), 'begun', 'but can be found');
sql(q{
	UPDATE sync_event_log SET begun_at = NULL WHERE begun_at IS NOT NULL AND ended_at IS NULL;
	NOTIFY syncstate_events});
ok(becomes('hold_text', 'begun ended'), 'and sent by hand');
my ($first, $second) = map { /^(Message-ID: .*)/m } mails('hold_text');
is($second, $first, 'as the same message');

# Before that.
revoke('hold_rcpt');
ok(held('hold_rcpt'), 'the server has the recipient only');
end_mailer($mailer, 'KILL');
let_go('hold_rcpt');
$mailer = start_mailer();
ok(becomes('hold_rcpt', 'begun ended'), 'what was not begun is sent after a crash');
is(scalar mails('hold_rcpt'), 1, 'once');

# While it takes events.
my $locker = $node->background_psql('postgres');
$locker->query_safe('BEGIN; LOCK TABLE sync_event_log IN EXCLUSIVE MODE');
revoke('eve');
ok($node->poll_query_until('postgres', q{
	SELECT count(*) = 1 FROM pg_stat_activity WHERE usename = 'mailer' AND wait_event_type = 'Lock'}),
	'an event is being taken');
end_mailer($mailer, 'KILL');
$locker->query_safe('COMMIT');
$locker->quit;
$mailer = start_mailer();
ok(becomes('eve', 'begun ended'), 'an event is there again after a crash');
is(scalar mails('eve'), 1, 'and told once');

# The same event once more, as after a restore of one of the tables.
sql(q{
	INSERT INTO syncstate.sync_event (id, at, event, user_id, account, source, resource, reason)
	SELECT id, at, event, user_id, account, source, resource, reason FROM told WHERE name = 'ada'});
revoke('fay');
ok(becomes('fay', 'begun ended'), 'another one');
is(sql('SELECT count(*) FROM syncstate.sync_event'), '0', 'an event that was told is taken again');
is(scalar mails('ada'), 1, 'and not told again');

# A stop is no crash.
revoke('hold_text_2');
ok(held('hold_text_2'), 'a mail is in work');
$mailer->signal('TERM');
let_go('hold_text_2');
is(end_mailer($mailer), 0, 'a stop ends the program in peace');
is(state_of('hold_text_2'), 'begun ended', 'after what was in work');
is(scalar mails('hold_text_2'), 1, 'which is sent once');

# ----------------------------------------------------------------- refusals

# What is over by the time; and servers that say no, each in its way.
revoke(qw(gus refused later unwanted spam silent));
sql(q{
	-- who lost access by a row that was paused meanwhile
	INSERT INTO users (email) VALUES ('ivy@example.org');
	SELECT syncstate.connect_sync(id, 'google_tasks'), syncstate.connect_sync(id, 'google_gmail'), syncstate.pause_sync(id, 'google_gmail'),
		syncstate.mark_sync_failed(id, 'google_gmail', 'HTTP 401', 'auth') FROM users WHERE email = 'ivy@example.org'});
revoke('hal');
sql(q{
	SELECT syncstate.connect_account(id) FROM users WHERE email = 'gus@example.org';
	SELECT syncstate.mark_sync_failed(gen_random_uuid(), 'google_gmail', 'HTTP 401', 'auth');
	INSERT INTO users VALUES ('00000000-0000-4000-8000-000000000002', E'x@example.org\nBcc: all@example.org');
	SELECT syncstate.mark_sync_failed('00000000-0000-4000-8000-000000000002', 'google_gmail', 'HTTP 401', 'auth')});
$mailer = start_mailer(POLL => 1);		# it begins anew where the server hangs up
ok(becomes('hal', 'begun ended'), 'others do not wait for those');
is(state_of('gus'), 'ended it is no longer so', 'who has come back meanwhile is not asked');
is(sql(q{SELECT string_agg(concat_ws(' ', reason, why_not), ', ' ORDER BY at, id) FROM told WHERE name = 'ivy' AND event = 'parked' AND reason = 'auth' AND ended_at IS NOT NULL}),
	'auth', 'but who has not, though the row that lost access was paused');
is(state_of('refused'), 'ended 550 no such user', 'a recipient who does not exist');
is(state_of('unwanted'), 'ended 554 no', 'a text that is refused unseen');
is(state_of('spam'), 'ended 554 spam', 'a text that is refused');
is(state_of('silent'), 'begun', 'no answer: in doubt');
is(scalar mails('silent'), 1, 'and not sent again');
ok(becomes('x', 'ended ' . sql(q{SELECT why_not FROM told WHERE name = 'x'})), 'an address that would be more than one');
like(state_of('x'), qr/^ended ValueError/, 'is none');
ok($node->poll_query_until('postgres', q{SELECT why_not = 'no address' FROM told WHERE name IS NULL AND mail_to = 'user'}),
	'a user without an address');
is(state_of('later'), '', 'who is told to come later waits');
is(sql(q{SELECT not_before BETWEEN now() + interval '3 minutes' AND now() + interval '5 minutes' FROM told WHERE name = 'later'}),
	't', 'for some minutes');
is(scalar mails('later'), 0, 'and is not there yet');
sql(q{UPDATE sync_event_log SET not_before = now() WHERE not_before IS NOT NULL});
ok(becomes('later', 'begun ended'), 'and comes then');
is(scalar mails('later'), 1, 'once');

end_mailer($mailer, 'TERM');

# A server that is not there.
revoke('jan');
my ($nobody) = PostgreSQL::Test::Cluster::get_free_port();
$mailer = start_mailer(SMTP_PORT => $nobody, POLL => 1);
ok(until_so(sub { slurp_file("$dir/mailer.log") =~ /mail server: .*refused/ }), 'the mail server is down');
is(state_of('jan'), '', 'so a mail waits');
end_mailer($mailer, 'TERM');

# ------------------------------------------------------------- several at once

my @many = map { "user$_" } 1 .. 60;
revoke(@many);
my @mailers = map { start_mailer(POLL => 1) } 1 .. 3;
ok(until_so(sub { sql(q{SELECT count(*) FROM told WHERE name LIKE 'user%' AND ended_at IS NOT NULL}) == @many }), 'three work at the same time');
is(join(' ', map { scalar mails($_) } @many), join(' ', map { 1 } @many), 'each mail is sent once');
is(scalar mails('jan'), 1, 'and what waited');
end_mailer($_, 'TERM') foreach @mailers;

# Without a notification.  When the mail to ida is sent, it does not look for
# events again before it has slept.
revoke('kim');
sql('CREATE TABLE unheard AS SELECT * FROM syncstate.take_sync_events()');
revoke('ida');
$mailer = start_mailer(POLL => 1);
ok(becomes('ida', 'begun ended'), 'nothing waits');
sql('INSERT INTO syncstate.sync_event SELECT * FROM unheard');
ok(becomes('kim', 'begun ended'), 'what nobody was notified of is told too');
end_mailer($mailer, 'TERM');

unlike(slurp_file("$dir/mailer.log"), qr/Traceback/, 'nothing went wrong otherwise') or diag slurp_file("$dir/mailer.log");
is(slurp_file("$dir/sink.log"), '', 'nor in the sink');

$node->stop;
done_testing();
