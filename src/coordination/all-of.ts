/** All have ended when this rejects with the first failure, in order, so that nothing is at work any more. */
export async function allOf(works: readonly unknown[]): Promise<void> {
  const ends = await Promise.allSettled(works);
  for (const end of ends) if (end.status === 'rejected') throw end.reason;
}
