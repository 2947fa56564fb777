/*
 * backend.c: what a server does for the state machine, for a program without one
 *
 * These few functions are all that the state machine needs of a server: if it
 * comes to need another, the program is not linked.
 */
#include "postgres.h"

#include <stdio.h>
#include <stdlib.h>

#include "access/detoast.h"
#include "common/hashfn.h"
#include "common/pg_prng.h"
#include "utils/builtins.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

#include "backend.h"

double		next_draw = 0;
pg_prng_state pg_global_prng_state;

/* One block: what is allocated after keep_memory() is gone at reset_memory(). */
static char memory[1024 * 1024] pg_attribute_aligned(MAXIMUM_ALIGNOF);
static Size used = 0;
static Size kept = 0;

void
keep_memory(void)
{
	kept = used;
}

void
reset_memory(void)
{
	used = kept;
}

void *
palloc(Size size)
{
	void	   *result = memory + used;

	used += MAXALIGN(size);
	if (used > sizeof(memory))
	{
		printf("Bail out! no memory is left\n");
		exit(1);
	}
	return result;
}

text *
cstring_to_text_with_len(const char *s, int len)
{
	text	   *result = palloc(VARHDRSZ + len);

	SET_VARSIZE(result, VARHDRSZ + len);
	memcpy(VARDATA(result), s, len);
	return result;
}

text *
cstring_to_text(const char *s)
{
	return cstring_to_text_with_len(s, strlen(s));
}

char *
psprintf(const char *fmt,...)
{
	char	   *result = palloc(1000);
	va_list		args;

	va_start(args, fmt);
	vsnprintf(result, 1000, fmt, args);
	va_end(args);
	return result;
}

/* No text of ours is compressed, or stored elsewhere. */
struct varlena *
pg_detoast_datum_packed(struct varlena *datum)
{
	return datum;
}

Size
toast_raw_datum_size(Datum value)
{
	return VARHDRSZ + VARSIZE_ANY_EXHDR(DatumGetPointer(value));
}

double
pg_prng_double(pg_prng_state *state)
{
	return next_draw;
}

/* FNV-1a; the state machine does not mind which hash it is. */
uint64
hash_bytes_extended(const unsigned char *k, int keylen, uint64 seed)
{
	uint64		hash = seed ^ UINT64CONST(0xcbf29ce484222325);

	for (int i = 0; i < keylen; i++)
		hash = (hash ^ k[i]) * UINT64CONST(0x100000001b3);
	return hash;
}

#ifdef USE_ASSERT_CHECKING
void
ExceptionalCondition(const char *condition,
#if PG_VERSION_NUM < 160000
					 const char *type,
#endif
					 const char *file, int line)
{
	printf("Bail out! failed assertion \"%s\" at %s:%d\n", condition, file, line);
	exit(1);
}
#endif
