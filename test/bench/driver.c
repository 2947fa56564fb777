/*-------------------------------------------------------------------------
 *
 * driver.c
 *		Workers of the benchmark: claim, complete, and measure how long it took
 *
 * One driver serves all rivals that are spoken to in SQL, so that what the
 * client does is the same for all.  It knows nothing of them but their
 * statements, which it prepares once per connection.  Not pgbench: that cannot
 * hand the rows of a claim to the report as arrays or JSON, nor tell the
 * latency of two statements of one script apart.
 *
 * Each client has a connection and a thread.  A cycle is a claim, the
 * transaction of its own, and the report of all rows that it returned, another
 * one.  The connections stay open between rounds, as those of real workers do.
 * Commands come on stdin, and each is answered with a line of JSON:
 *
 *	go N [P]	claim and complete N rows, over all clients; each of them claims
 *				P seconds after its last claim, give or take a half.  N = 0: until
 *				there is another line
 *	hold N		claim N rows and complete none: their worker has died
 *	idle N		claim N times per client, expecting nothing
 *	read N		claim N times per client, where that takes nothing
 *
 * A row that is handed out while another claim of this process still has it is
 * counted as "double", a row that could not be completed as "lost".
 *
 * test/bench/driver.c
 *
 *-------------------------------------------------------------------------
 */
#include <libpq-fe.h>

#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Types of the parameters of a report; those of one row, and their arrays. */
#define INT8OID			20
#define INT8ARRAYOID	1016

/* How long there may be nothing to claim, in seconds, until we give up. */
#define MAX_EMPTY		20

typedef struct Buffer
{
	char	   *data;
	size_t		len;
	size_t		size;
} Buffer;

typedef struct Times
{
	double	   *seconds;
	size_t		n;
	size_t		size;
} Times;

typedef struct Client
{
	PGconn	   *conn;
	pthread_t	thread;
	uint64_t	random;
	char		mark[64];		/* the due time it has come to */
	double		swept;			/* when it last began from the beginning */
	Buffer		ids;
	Buffer		leases;
	Buffer		tokens;
	Buffer		places;
	long	   *numbers;		/* of the rows it has */
	long		claims;
	long		empty;
	long		retries;
	long		lost;
	long		twice;
	Times		claim;
	Times		complete;
} Client;

/* What the command line says; see main(). */
static const char *conninfo = "";
static const char *setup = NULL;
static const char *claim_sql = NULL;
static const char *take_sql = NULL;
static const char *complete_sql = NULL;
static const char *list_sql = NULL;
static int	nclients = 1;
static int	batch = 1;
static long nrows = 0;
static bool with_mark = false;
static bool as_json = false;

static Client *clients;
static char command;			/* the first letter */
static double period;			/* from one claim of a client to its next */
static atomic_long wanted;		/* rows, or per client claims, still to do */
static atomic_long claimed;
static atomic_char *taken;		/* by number of row: somebody has it */
static PGresult *list;			/* ids of rows, for who need not search */
static atomic_long list_next;

static void
die(const char *format,...)
{
	va_list		args;

	va_start(args, format);
	fputs("driver: ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
	exit(1);
}

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void
add(Buffer *b, const char *format,...)
{
	va_list		args;
	int			n;

	for (;;)
	{
		va_start(args, format);
		n = vsnprintf(b->data + b->len, b->size - b->len, format, args);
		va_end(args);
		if (b->len + n < b->size)
			break;
		b->size = 2 * b->size + n + 1024;
		b->data = realloc(b->data, b->size);
		if (b->data == NULL)
			die("out of memory");
	}
	b->len += n;
}

static void
add_time(Times *t, double seconds)
{
	if (t->n == t->size)
	{
		t->size = 2 * t->size + 1024;
		t->seconds = realloc(t->seconds, t->size * sizeof(double));
		if (t->seconds == NULL)
			die("out of memory");
	}
	t->seconds[t->n++] = seconds;
}

static uint64_t
next_random(Client *c)
{
	/* xorshift64 */
	c->random ^= c->random << 13;
	c->random ^= c->random >> 7;
	c->random ^= c->random << 17;
	return c->random;
}

/* From 0 to 1. */
static double
fraction(Client *c)
{
	return (next_random(c) >> 11) / 9007199254740992.0;
}

static void
sleep_until(double then)
{
	double		left = then - now();

	if (left > 0)
		usleep(left * 1e6);
}

/* Executes a prepared statement.  Null if it met another client's locks. */
static PGresult *
execute(Client *c, const char *name, int nparams, const char *const *params)
{
	PGresult   *res = PQexecPrepared(c->conn, name, nparams, params, NULL, NULL, 0);
	const char *sqlstate;

	if (PQresultStatus(res) == PGRES_TUPLES_OK ||
		PQresultStatus(res) == PGRES_COMMAND_OK)
		return res;
	sqlstate = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	if (sqlstate == NULL || strncmp(sqlstate, "40", 2) != 0)
		die("%s: %s", name, PQerrorMessage(c->conn));
	PQclear(res);
	c->retries++;
	return NULL;
}

/* How many rows a statement wrote, or its function returned. */
static long
rows_done(PGresult *res)
{
	return PQresultStatus(res) == PGRES_TUPLES_OK ? PQntuples(res) :
		atol(PQcmdTuples(res));
}

/*
 * Makes the parameters of a report: ids, leases, new cursors and, if the claim
 * told them, places, as arrays, as values where a batch is one row, or as JSON.
 * Returns how many there are.
 */
static int
make_params(Client *c, PGresult *rows, int n, const char **params)
{
	bool		scalar = batch == 1 && !as_json;

	c->ids.len = c->leases.len = c->tokens.len = c->places.len = 0;
	for (int i = 0; i < n; i++)
	{
		const char *id = PQgetvalue(rows, i, 0);
		const char *lease = PQgetvalue(rows, i, 1);
		const char *before = i == 0 ? "{" : ",";
		uint64_t	a = next_random(c);
		uint64_t	b = next_random(c);

		if (as_json)
			add(&c->ids,
				"%s{\"user_id\":\"%s\",\"source\":\"%s\","
				"\"lease\":%s,\"outcome\":\"completed\","
				"\"sync_token\":\"CP%016" PRIx64 "%016" PRIx64 "GAU=\"}",
				i == 0 ? "[" : ",", id,
				PQnfields(rows) > 3 ? PQgetvalue(rows, i, 3) : "google_calendar",
				lease, a, b);
		else
		{
			if (scalar)
				before = "";
			/* a tid has a comma in it */
			add(&c->ids, list_sql && !scalar ? "%s\"%s\"" : "%s%s", before, id);
			add(&c->leases, "%s%s", before, lease);
			add(&c->tokens, "%sCP%016" PRIx64 "%016" PRIx64 "GAU=", before, a, b);
			if (with_mark)
				add(&c->places, scalar ? "%s%s" : "%s\"%s\"", before,
					PQgetvalue(rows, i, 4));
		}
	}
	if (as_json)
		add(&c->ids, "]");
	else if (!scalar)
	{
		add(&c->ids, "}");
		add(&c->leases, "}");
		add(&c->tokens, "}");
		add(&c->places, "}");
	}
	params[0] = c->ids.data;
	params[1] = c->leases.data;
	params[2] = c->tokens.data;
	params[3] = c->places.data;
	return as_json ? 1 : with_mark ? 4 : 3;
}

/* The ids of the next rows of the list, as the parameter of a claim. */
static const char *
listed_ids(Client *c)
{
	long		first = atomic_fetch_add(&list_next, batch);

	c->ids.len = 0;
	for (long i = first; i < first + batch && i < PQntuples(list); i++)
		add(&c->ids, batch == 1 ? "%s%s" : "%s\"%s\"",
			batch == 1 ? "" : i == first ? "{" : ",",
			PQgetvalue(list, i, 0));
	if (c->ids.len == 0)
		die("the list has too few rows");
	if (batch > 1)
		add(&c->ids, "}");
	return c->ids.data;
}

/* Claims; null if there was nothing to take. */
static PGresult *
claim(Client *c)
{
	const char *params[4];
	double		start = now();
	PGresult   *rows;
	int			n;

	if (with_mark && start - c->swept > 1)
	{
		strcpy(c->mark, "-infinity");
		c->swept = start;
	}
	params[0] = list_sql ? listed_ids(c) : c->mark;
	start = now();
	rows = execute(c, "claim", with_mark || list_sql ? 1 : 0, params);
	if (rows != NULL && take_sql != NULL && PQntuples(rows) > 0)
	{
		PGresult   *res;

		make_params(c, rows, PQntuples(rows), params);
		res = execute(c, "take", 1, params);
		if (res == NULL)
		{
			PQclear(rows);
			rows = NULL;
		}
		PQclear(res);
	}
	add_time(&c->claim, now() - start);
	c->claims++;
	n = rows == NULL ? 0 : PQntuples(rows);
	if (with_mark)
	{
		if (n > 0)
			for (int i = 0; i < n; i++)
			{
				/* text of equal form and time zone compares like time */
				const char *at = PQgetvalue(rows, i, 3);

				if (i == 0 || strcmp(at, c->mark) > 0)
					snprintf(c->mark, sizeof(c->mark), "%s", at);
			}
	}
	for (int i = 0; i < n && taken != NULL; i++)
	{
		const char *id = PQgetvalue(rows, i, 0);

		/* the last part of the user's uuid is the number of the row */
		c->numbers[i] = strtol(id + 24, NULL, 16);
		if (c->numbers[i] < 0 || c->numbers[i] > nrows)
			die("claimed row %s, which is not of ours", id);
		if (atomic_exchange(&taken[c->numbers[i]], 1))
			c->twice++;
	}
	if (n > 0)
		return rows;
	c->empty++;
	PQclear(rows);
	return NULL;
}

static void
complete(Client *c, PGresult *rows)
{
	int			n = PQntuples(rows);
	const char *params[4];
	int			nparams = make_params(c, rows, n, params);
	double		start;
	PGresult   *res;

	start = now();
	do
		res = execute(c, "complete", nparams, params);
	while (res == NULL);
	add_time(&c->complete, now() - start);
	/* none of them is due for a while, so nobody else can have them yet */
	for (int i = 0; i < n && taken != NULL; i++)
		atomic_store(&taken[c->numbers[i]], 0);
	c->lost += n - rows_done(res);
	PQclear(res);
}

static void *
work(void *arg)
{
	Client	   *c = arg;
	double		found = now();

	if (command == 'i' || command == 'r')
	{
		long		n = atomic_load(&wanted);

		for (long i = 0; i < n; i++)
		{
			PGresult   *rows = claim(c);

			if (rows != NULL && command == 'i')
				die("there was something to claim");
			PQclear(rows);
		}
		return NULL;
	}
	sleep_until(found + period * fraction(c));	/* not all at once */
	while (atomic_fetch_sub(&wanted, batch) > 0)
	{
		double		start = now();
		PGresult   *rows = claim(c);
		int			n = rows == NULL ? 0 : PQntuples(rows);

		atomic_fetch_add(&claimed, n);
		atomic_fetch_add(&wanted, batch - n);
		if (n > 0)
		{
			found = start;
			if (command == 'g')
				complete(c, rows);
			PQclear(rows);
		}
		else if (start - found > MAX_EMPTY)
			die("nothing is due");
		else if (period == 0)
			usleep(1000);
		sleep_until(start + period * (0.5 + fraction(c)));
	}
	return NULL;
}

static int
compare_doubles(const void *a, const void *b)
{
	double		x = *(const double *) a;
	double		y = *(const double *) b;

	return x < y ? -1 : x > y;
}

static void
print_times(const char *name, size_t offset)
{
	Times		all = {0};

	for (int i = 0; i < nclients; i++)
	{
		Times	   *t = (Times *) ((char *) &clients[i] + offset);

		for (size_t j = 0; j < t->n; j++)
			add_time(&all, t->seconds[j]);
		t->n = 0;
	}
	if (all.n == 0)
		return;
	qsort(all.seconds, all.n, sizeof(double), compare_doubles);
	printf(",\"%s_p50\":%.9f,\"%s_p99\":%.9f,\"%s_max\":%.9f", name,
		   all.seconds[all.n / 2], name, all.seconds[all.n * 99 / 100], name,
		   all.seconds[all.n - 1]);
	free(all.seconds);
}

static void
flush_statistics(Client *c)
{
	PQclear(PQexec(c->conn, "SELECT pg_stat_force_next_flush()"));
}

static void
round_of(long n)
{
	double		start;
	long		counts[5] = {0};

	atomic_store(&wanted, n > 0 ? n : LONG_MAX / 2);
	atomic_store(&claimed, 0);
	if (list_sql != NULL)
	{
		PQclear(list);
		list = NULL;
		for (int tries = 0; list == NULL || PQntuples(list) < n; tries++)
		{
			if (tries > 0)
				usleep(10000);
			if (tries > MAX_EMPTY * 100)
				die("nothing is due");
			PQclear(list);
			list = PQexec(clients[0].conn, list_sql);
			if (PQresultStatus(list) != PGRES_TUPLES_OK)
				die("list: %s", PQerrorMessage(clients[0].conn));
		}
		flush_statistics(&clients[0]);	/* not in the round */
		atomic_store(&list_next, 0);
	}
	puts("{\"ready\":1}");
	fflush(stdout);
	if (getchar() != '\n')
		die("expected an empty line");
	start = now();
	for (int i = 0; i < nclients; i++)
		if (pthread_create(&clients[i].thread, NULL, work, &clients[i]) != 0)
			die("could not create a thread");
	if (n == 0)
	{
		(void) getchar();
		atomic_store(&wanted, LONG_MIN / 2);
	}
	for (int i = 0; i < nclients; i++)
		pthread_join(clients[i].thread, NULL);
	printf("{\"seconds\":%.6f,\"cycles\":%ld", now() - start,
		   atomic_load(&claimed));
	for (int i = 0; i < nclients; i++)
	{
		Client	   *c = &clients[i];

		counts[0] += c->claims;
		counts[1] += c->empty;
		counts[2] += c->retries;
		counts[3] += c->lost;
		counts[4] += c->twice;
		c->claims = c->empty = c->retries = c->lost = c->twice = 0;
	}
	printf(",\"claims\":%ld,\"empty\":%ld,\"retries\":%ld,\"lost\":%ld,\"double\":%ld",
		   counts[0], counts[1], counts[2], counts[3], counts[4]);
	print_times("claim", offsetof(Client, claim));
	print_times("complete", offsetof(Client, complete));
	puts("}");
	for (int i = 0; i < nclients; i++)
		flush_statistics(&clients[i]);
	fflush(stdout);
}

static void
prepare(Client *c, const char *name, const char *sql)
{
	/* a bare UPDATE by ctid has no use for leases */
	Oid			types[] = {0, batch == 1 ? INT8OID : INT8ARRAYOID};
	bool		report = strcmp(name, "complete") == 0 && !as_json;
	PGresult   *res;

	if (sql == NULL)
		return;
	res = PQprepare(c->conn, name, sql, report ? 2 : 0, types);
	if (PQresultStatus(res) != PGRES_COMMAND_OK)
		die("%s: %s", name, PQerrorMessage(c->conn));
	PQclear(res);
}

int
main(int argc, char **argv)
{
	char		line[64];
	int			option;
	unsigned long seed = 1;

	while ((option = getopt(argc, argv, "d:S:c:b:n:s:q:t:r:l:mj")) != -1)
		switch (option)
		{
			case 'd':			/* where to */
				conninfo = optarg;
				break;
			case 'S':			/* what to execute in each new session */
				setup = optarg;
				break;
			case 'c':
				nclients = atoi(optarg);
				break;
			case 'b':
				batch = atoi(optarg);
				break;
			case 'n':			/* rows; 0: ids are none of ours */
				nrows = atol(optarg);
				break;
			case 's':
				seed = strtoul(optarg, NULL, 10);
				break;
			case 'q':			/* claim: id, lease, cursor; due time, ctid if -m */
				claim_sql = optarg;
				break;
			case 't':			/* second half of a claim that has two */
				take_sql = optarg;
				break;
			case 'r':			/* report */
				complete_sql = optarg;
				break;
			case 'l':			/* ids are listed here, and given to the claim */
				list_sql = optarg;
				break;
			case 'm':			/* the claim is given where it came to last,
								 * and the report where its rows are */
				with_mark = true;
				break;
			case 'j':			/* reports are JSON; the claim returns the source,
								 * too, if there are several */
				as_json = true;
				break;
			default:
				return 2;
		}
	if (claim_sql == NULL || complete_sql == NULL || nclients < 1 || batch < 1)
		die("usage: see main()");

	clients = calloc(nclients, sizeof(Client));
	if (nrows > 0)
		taken = calloc(nrows + 1, 1);
	for (int i = 0; i < nclients; i++)
	{
		Client	   *c = &clients[i];

		c->random = (seed * 8191 + i + 1) * 0x9E3779B97F4A7C15;
		c->numbers = calloc(batch, sizeof(long));
		strcpy(c->mark, "-infinity");
		c->swept = now();
		c->conn = PQconnectdb(conninfo);
		if (PQstatus(c->conn) != CONNECTION_OK)
			die("%s", PQerrorMessage(c->conn));
		if (setup != NULL)
		{
			PGresult   *res = PQexec(c->conn, setup);

			if (PQresultStatus(res) != PGRES_COMMAND_OK)
				die("%s", PQerrorMessage(c->conn));
			PQclear(res);
		}
		prepare(c, "claim", claim_sql);
		prepare(c, "take", take_sql);
		prepare(c, "complete", complete_sql);
	}
	while (fgets(line, sizeof(line), stdin) != NULL)
	{
		long		n;

		period = 0;
		if (sscanf(line, "%*s %ld %lf", &n, &period) < 1)
			break;
		command = line[0];
		round_of(n);
	}
	return 0;
}
