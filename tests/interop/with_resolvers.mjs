// Promise.withResolvers, which Node 20 lacks and js-libp2p calls as it is loaded: to be imported before it.

Promise.withResolvers ??= function () {
  const parts = {}
  parts.promise = new Promise((resolve, reject) => Object.assign(parts, { resolve, reject }))
  return parts
}
